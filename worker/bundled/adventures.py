"""More plots for the story grammar, in the notation that `plots` explains: gardens, bridges, maps and long nights."""

from __future__ import annotations

from worker.bundled.plots import Plot

SEED: Plot = (
    ("{m}, {afriend}, gave {n} a tiny seed.", "At the market {n} bought a seed from {m}, {afriend}."),
    (
        '"Plant it and wait," said {m}.',
        '"It will grow into something wonderful," said {m}.',
        '"Give it water every day," {mhe} said, "and do not forget it."',
    ),
    (
        "{n} dug a small hole behind {his} house and put the seed into it.",
        "{n} planted it in an old pot and set the pot in the sun.",
    ),
    (
        "A week went by, and nothing happened.",
        "{He} watered it every day, but there was nothing to see.",
        "Every morning {he} looked, and every morning there was only earth.",
    ),
    (
        "?",
        '"Maybe it is only a stone," {n} thought sadly.',
        "The neighbours laughed, but {n} went on.",
        "{He} sang to it in the evening.",
    ),
    (
        "Then, after a warm rain, a green leaf came out of the ground.",
        "One morning there was a tiny green leaf.",
    ),
    (
        "It grew and grew until it was taller than the house.",
        "By the end of summer it was a tree full of golden apples.",
        "Soon it was the most beautiful flower {p}.",
    ),
    (
        "{n} called {m}, and they sat in its shade and ate {food}.",
        "People came from far away to look at it.",
        '"You waited well," said {m}.',
    ),
)

BRIDGE: Plot = (
    (
        "A wide river ran past the house, and there was no bridge.",
        "The old bridge had fallen into the river.",
        "On the other side of the river lived {m}, {afriend}.",
    ),
    ('"I will build a bridge," said {n}.', "{n} decided to build a bridge of wood and rope."),
    (
        "{He} carried stones all day, but the water washed them away.",
        "{He} tied two branches together, but they broke.",
        "The first bridge fell down before the evening.",
    ),
    ("Everybody said that it could not be done.", '"It is too difficult," said the neighbours.'),
    (
        "Then {m}, who was {afriend}, came with a long rope.",
        '"Let me help you," called {m}, {afriend}, from the other side.',
    ),
    (
        "{n} worked on one side and {m} on the other.",
        "They worked together from morning until night.",
        "{m} held the rope, and {n} laid the planks.",
    ),
    (
        "On the seventh day the bridge was ready.",
        "At last they met in the middle and shook hands.",
    ),
    (
        "They hung {o} on it, so that everyone could find the way.",
        "The first to cross was a small snail.",
        "All the neighbours came and brought {food}.",
    ),
)

NIGHT: Plot = (
    ("{n} was afraid of the dark.", "When the lights went out, {n} could not sleep."),
    (
        "The shadows on the wall looked like giants.",
        "Every little noise made {him} jump.",
        "{He} heard something scratching at the window.",
    ),
    (
        '"Who is there?" {he} whispered, but nobody answered.',
        "{He} pulled the blanket over {his} head.",
        "{He} held {o} as tightly as {he} could.",
    ),
    (
        "Then a friendly voice said, \"It is only me.\"",
        "Then {he} heard a soft laugh.",
    ),
    (
        "It was {m}, {afriend}, who loved the night.",
        "On the window sill sat {m}, {afriend}.",
    ),
    (
        '"Come outside," said {m}. "I will show you something."',
        '"The night is beautiful," said {m}. "Look up!"',
    ),
    (
        "Above the trees there were a thousand stars.",
        "The sky was full of stars, and the moon was as round as a plate.",
        "Fireflies danced over {pl} like tiny lamps.",
    ),
    (
        "?",
        "They counted the stars until they lost count.",
        "{m} told {him} the name of every star.",
        "An owl called, and {n} was not afraid of it.",
    ),
    (
        "After that {n} was not afraid any more.",
        '"The dark is only the day with its eyes closed," said {m}.',
        "{n} yawned and went back to bed.",
    ),
)

MAP: Plot = (
    (
        "In an old book {n} found a map.",
        "One day the wind blew a map right into the hands of {n}.",
        "Behind a loose brick {n} discovered an old map.",
    ),
    (
        "A red cross marked a place {p}.",
        'It said, "Follow the river and turn left at the tall tree."',
    ),
    (
        "{He} packed {food} and called {m}, {afriend}.",
        "{He} showed it to {m}, {afriend}, who loved adventures.",
    ),
    ('"Let us go at once!" said {m}.', '"A treasure!" cried {m}. "I am coming with you."'),
    (
        "They followed the river, and they climbed over rocks and roots.",
        "They walked for two days and slept under the stars.",
        "The way was long, and the sun was hot.",
    ),
    (
        "?",
        "Once they lost their way, but a friendly crow showed them the path.",
        "{m} got tired, so {n} carried the bag.",
        "A deep hole lay in the way, and they had to jump.",
    ),
    (
        "At the red cross they began to dig.",
        "At last they stood in front of the tall tree and started to dig.",
    ),
    (
        "Deep in the ground was a wooden box, and in the box was {o}.",
        "They found a small chest with {ao} inside.",
    ),
    (
        '"It is not gold," said {n}, "but I like it much more."',
        '"The best treasure is the journey," said {m}.',
        "They laughed all the way home.",
    ),
)

SOUP: Plot = (
    (
        "It was a cold winter, and there was not much to eat.",
        "One evening {n} was very hungry, and the cupboard was empty.",
    ),
    (
        "{n} had only one carrot.",
        "{n} put a big pot of water on the fire.",
        "All that {n} could find was a single onion.",
    ),
    (
        '"I have a potato," said {m}, {afriend}, who came by.',
        "Then {m}, {afriend}, knocked at the door and brought some beans.",
    ),
    (
        '"Let us make soup," said {n}.',
        '"If we put it all together, it will be enough," said {n}.',
    ),
    (
        "Soon the neighbours smelled it, and each of them brought something.",
        "The farmer brought salt, and the miller brought bread.",
    ),
    (
        "They cooked and stirred, and the windows became white with steam.",
        "{m} stirred the pot, and {n} set the table.",
    ),
    (
        "The soup was warm and good, and there was enough for everyone.",
        "Nobody had ever eaten such a wonderful soup.",
    ),
    (
        "?",
        "Afterwards they sang until midnight.",
        "For dessert they had {food}.",
        "{n} gave {o} to {m} as a present.",
    ),
)

SONG: Plot = (
    ("{n} loved music, but {he} could not sing.", "{n} wanted to play in the band of the town."),
    (
        "When {he} opened {his} mouth, the birds flew away.",
        "Everyone laughed when {he} tried.",
        "{His} voice sounded like an old door.",
    ),
    (
        "One day {he} met {m}, {afriend}, who played the flute.",
        "In the market {he} heard {m}, {afriend}, play the violin.",
    ),
    (
        '"Can you teach me?" asked {n}.',
        '"I wish I could do that," said {n}.',
    ),
    (
        '"Everybody has a song," said {m}. "You only have to find yours."',
        '"It takes time," said {m}, "but I will help you."',
    ),
    (
        "They practised every evening {p}.",
        "Day after day {n} practised, and {he} did not give up.",
        "{n} practised until even {ao} on the shelf seemed to listen.",
    ),
    (
        "At the summer festival {n} stood on the stage, and {his} knees shook.",
        "Then came the day of the great concert.",
    ),
    (
        "But when the music began, {he} forgot that {he} was afraid.",
        "{He} looked at {m}, took a deep breath and began.",
    ),
    (
        "When it was over, everybody stood up and clapped.",
        "It was not perfect, but it was full of joy.",
    ),
)

STAR: Plot = (
    (
        "One night a star fell from the sky and landed {p}.",
        "{n} liked to look at the stars, and one night one of them fell down.",
    ),
    (
        "It was small and pale, and it could not fly.",
        '"I am lost," said the star in a tiny voice.',
    ),
    (
        "{n} wrapped it in a warm cloth, laid it next to {ao} and spoke to it softly.",
        "{n} picked it up carefully and kept it warm.",
    ),
    (
        '"How can we bring it back?" {he} asked {m}, {afriend}.',
        "{He} asked {m}, {afriend}, for help.",
    ),
    (
        '"We must climb the highest mountain," said {m}.',
        '"I know a tower that touches the clouds," said {m}.',
    ),
    (
        "They climbed all night, and the star glowed softly.",
        "The way was steep, but they did not stop.",
    ),
    (
        "?",
        "When {n} was tired, {m} told {him} a joke.",
        "They stopped once and ate {food}.",
        "A cold wind blew, and they held hands.",
    ),
    (
        "At the top {n} lifted the star as high as {he} could.",
        "At the very top they let it go.",
    ),
    (
        "It rose slowly into the sky and shone brighter than before.",
        '"Thank you!" called the star, and it flew up and up.',
    ),
    (
        "Since then it winks at {n} every night.",
        "If you look closely, you can see it above {pl}.",
    ),
)

BOAT: Plot = (
    ("{n} wanted to see the sea.", "{n} dreamed of a long journey."),
    (
        "So {he} built a small boat out of an old barrel.",
        "So {he} took {ao} and went down to the harbour.",
        "{He} borrowed a boat from {m}, {afriend}.",
    ),
    (
        '"Take me with you," said {m}, {afriend}.',
        "{m}, {afriend}, came along, because two are braver than one.",
    ),
    (
        "The river carried them past villages and fields.",
        "They sailed for three days and saw nothing but water.",
        "In the evening the water was red and gold.",
    ),
    (
        "Suddenly the boat began to leak!",
        "Then a big wave turned the boat around.",
        "Then fog came, and they could not see anything.",
    ),
    (
        '"Quick!" cried {m}. "Use {o}!"',
        "{n} did not lose {his} head and held on to the rudder.",
        "{m} rang a little bell, and far away somebody answered.",
    ),
    (
        "In the end they reached an island with white sand.",
        "At last they saw a lighthouse and came safely to the shore.",
    ),
    (
        "There they ate {food} and built a house of sand.",
        "They stayed for a week, and then they went home.",
        '"The world is big," said {n}, "but home is the best place."',
    ),
)

ADVENTURES: tuple[Plot, ...] = (SEED, BRIDGE, NIGHT, MAP, SOUP, SONG, STAR, BOAT)
