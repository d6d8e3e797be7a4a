"""The sentences of the story grammar: openings, settings, plots and endings.

Slots: {n} the hero's name, {he} {him} {himself} {his} {He} {His} its pronouns; {m} the friend's name, {mhe} {mhim}
{mhis} its pronouns; {ahero} "a little fox", {afriend} "an old bear"; {o} and {ao} "a red kite" at first and "the
red kite" later; {pl} "the forest", {p} "in the forest"; {w} the weather; {food} something to eat; {feel} a feeling.
Where the friend was introduced before, ", {afriend}," is left out.
A plot is a list of beats, a beat a tuple of alternatives; a beat whose first entry is "?" may be left out.
"""

from __future__ import annotations

Beat = tuple[str, ...]
Plot = tuple[Beat, ...]

OPENINGS: Beat = (
    "Once upon a time there was {ahero} named {n} who lived {p}.",
    "Once upon a time, {p}, there lived {ahero} named {n}.",
    "{n} was {ahero} who lived {p}.",
    "There once was {ahero} called {n}, and {his} home was {p}.",
    "Long ago, {ahero} named {n} lived {p}.",
    "In a small house {p} lived {ahero} named {n}.",
    "This is the story of {n}, {ahero} who lived {p}.",
    "Far away, {p}, lived {ahero} whose name was {n}.",
)

SETTINGS: Beat = (
    "One {w} morning {he} woke up early and looked outside.",
    "One {w} day {he} went for a long walk.",
    "It was a {w} day, and {n} felt {feel}.",
    "Every morning {n} ate {food} and sang a quiet song.",
    "Everyone knew {n}, because {he} was always {feel}.",
    "On a {w} afternoon {n} had nothing to do.",
    "{n} loved {food} more than anything else.",
    "The day was {w}, and the wind smelled of {food}.",
)

LOST: Plot = (
    (
        "{n} had {ao}, and {he} took it everywhere.",
        "The best thing {n} owned was {ao}.",
        "{His} grandmother had given {him} {ao}, and {he} loved it very much.",
    ),
    (
        "One evening {he} could not find {o} anywhere.",
        "But one day {o} was gone.",
        "Then, one windy night, {o} disappeared.",
    ),
    (
        "{n} looked under the bed, behind the door and up on the roof, but it was not there.",
        "{He} searched the whole house, and then {he} sat down and cried.",
        "{He} looked high and low, but {he} found only dust and an old shoe.",
    ),
    (
        "At last {he} asked {m}, {afriend} who lived nearby.",
        "Then {m}, {afriend}, came by and asked what was wrong.",
        "{He} went to see {m}, {afriend} with a good memory.",
    ),
    (
        '"When did you last see it?" asked {m}.',
        '"Do not worry," said {m}. "We will look together."',
        '"I will help you," said {m}. "Four eyes see more than two."',
    ),
    (
        "?",
        "They walked back along the path and looked behind every stone.",
        "They asked the birds, but the birds had seen nothing.",
        "They searched until the sun went down.",
    ),
    (
        "Near the old bridge, something shone in the grass. It was {o}!",
        "At the foot of a tall tree they found {o}, a little dirty but not broken.",
        "There, under a pile of leaves, lay {o}.",
    ),
    (
        '"Thank you!" said {n}, and {he} hugged {m} tightly.',
        "{n} was so {feel} that {he} danced in a circle.",
        "From then on {n} took better care of {o}.",
    ),
)

FOUND: Plot = (
    (
        "By the side of the road {n} found {ao}.",
        "While {he} was walking, {n} saw {ao} lying in the grass.",
        "Under a bench {n} discovered {ao}.",
    ),
    (
        '"Who could have lost this?" {he} wondered.',
        "It was beautiful, and {n} wanted to keep it.",
        '"How pretty it is!" said {n}. "But it is not mine."',
    ),
    (
        "?",
        "{He} asked the baker, but the baker only shook his head.",
        "{He} knocked on every door, but nobody knew it.",
        "{He} sat down on a stone and thought about it for a while.",
    ),
    (
        "Then {he} met {m}, {afriend}, who looked very sad.",
        "On the way home {he} heard somebody crying. It was {m}, {afriend}.",
        "Soon {he} came to the house of {m}, {afriend}.",
    ),
    (
        '"I have lost {o}," said {m}. "It belonged to my father."',
        '"Have you seen {o}?" asked {m}. "I cannot sleep without it."',
        '"Oh, that is mine!" cried {m}. "I lost it in the storm."',
    ),
    (
        "{n} did not wait a moment and gave it back.",
        '"Here it is," said {n}, and {he} put {o} into the hands of {m}.',
        "{n} smiled and held out {o}.",
    ),
    (
        "{m} was so happy that {mhe} invited {n} to eat {food}.",
        'To say thank you, {m} shared {food} with {n}.',
        '"You are a true friend," said {m}, and they shared {food}.',
    ),
)

STORM: Plot = (
    (
        "In the evening dark clouds came over the hills.",
        "Suddenly the sky turned black and it began to rain.",
        "That night a great storm came.",
    ),
    (
        "The wind howled, and the thunder was so loud that the windows shook.",
        "The rain fell so hard that the path became a river.",
        "Lightning flashed, and the trees bent in the wind.",
    ),
    (
        "{n} was afraid, but {he} lit a small lamp and waited.",
        "{n} closed the door and put {o} on the table, where it was safe.",
        "{n} hid under a warm blanket and held {o} close.",
    ),
    (
        "Then somebody knocked at the door.",
        "Then {he} heard a small voice outside.",
        "In the middle of the night there was a knock.",
    ),
    (
        "It was {m}, {afriend}, wet and cold.",
        "Outside stood {m}, {afriend}, shaking from head to foot.",
    ),
    (
        '"My house has lost its roof," said {m}. "May I come in?"',
        '"I cannot find my way home," said {m}. "Please help me."',
        '"The water is too high," said {m}. "Can I stay here tonight?"',
    ),
    (
        '"Of course," said {n}. "Come in and sit by the fire."',
        "{n} opened the door wide and gave {m} a dry blanket.",
        '"Come in quickly!" said {n}, and {he} made some hot tea.',
    ),
    (
        "?",
        "They ate {food} and told each other stories.",
        "They sang songs, and soon the thunder did not seem so loud.",
        "{m} fell asleep at once, and {n} kept watch.",
    ),
    (
        "In the morning the sun was shining again.",
        "When they woke up, the storm was over.",
    ),
    (
        "Together they repaired the roof, and it took all day.",
        "{n} walked home with {m}, and they stayed friends.",
        "They looked at the bright sky and laughed.",
    ),
)

FRIEND: Plot = (
    (
        "{n} was often lonely, because nobody lived near {him}.",
        "{n} wished for a friend.",
        "{n} had {ao}, but {he} had nobody to play with.",
    ),
    (
        "One day {m}, {afriend}, moved in next door.",
        "One morning {he} met {m}, {afriend}, near the river.",
        "Then {m}, {afriend}, came to live {p}.",
    ),
    (
        "At first {n} was too shy to speak.",
        "{n} wanted to say hello, but {he} did not know how.",
        "{m} looked so serious that {n} ran away.",
    ),
    (
        "?",
        "{He} watched from behind a tree and waited.",
        "For three days they only looked at each other.",
        "That night {n} could not sleep.",
    ),
    (
        "Then {he} had an idea. {He} took {o} and knocked at the door.",
        "The next day {he} made {food} and brought it to {m}.",
        "At last {he} took a deep breath and said good morning.",
    ),
    (
        '"Would you like to play with me?" asked {n}.',
        '"My name is {n}," {he} said. "What is yours?"',
        '"I thought we could share this," said {n}.',
    ),
    (
        '"I would love to," said {m}. "I was shy, too."',
        '"How kind of you!" said {m}. "Please come in."',
        '"I was hoping you would ask," said {m} with a smile.',
    ),
    (
        "They played until the moon came up.",
        "They talked and laughed all afternoon.",
        "After that they met every day.",
    ),
)

RACE: Plot = (
    (
        "One day there was a big race {p}.",
        "Every summer there was a race {p}.",
        "The mayor promised {ao} to the winner of the great race.",
    ),
    (
        "{m}, {afriend}, was the fastest of all and told everybody so.",
        '"Nobody can beat me," said {m}, {afriend}.',
        "Everyone thought that {m}, {afriend}, would win.",
    ),
    (
        "{n} was not very fast, but {he} wanted to try.",
        "{n} had never run in a race before.",
        '"I will do my best," said {n}.',
    ),
    (
        "The bell rang, and they all began to run.",
        "When the flag went down, everybody ran as fast as the wind.",
        '"One, two, three, go!" shouted the mayor.',
    ),
    (
        "Halfway up the hill {m} fell and hurt {mhis} foot.",
        "At the river {m} slipped and fell into the water.",
        "Near the end {m} got stuck in the mud.",
    ),
    (
        "{n} could have passed {mhim}, but {he} stopped.",
        "Everyone else ran past, but {n} turned back.",
    ),
    (
        '"Take my hand," said {n}, and {he} helped {mhim} up.',
        '"Lean on me," said {n}. "We will finish together."',
    ),
    (
        "They crossed the line side by side, and the crowd cheered.",
        "They came in last, but everybody clapped for them.",
        "Nobody remembers who won, but everybody remembers {n} and {m}.",
    ),
    (
        "?",
        "That evening they ate {food} together.",
        "The mayor gave {o} to both of them.",
        '"You are the real winner," said {m}.',
    ),
)

GIFT: Plot = (
    (
        "Tomorrow was the birthday of {m}, {afriend}.",
        "{n} wanted to make a present for {m}, {afriend}.",
        "{m}, {afriend}, was ill and had to stay in bed.",
    ),
    (
        '"What could I bring?" {n} asked {himself}.',
        "{n} thought about it for a long time.",
        "But {n} had no money at all.",
    ),
    (
        "First {he} tried to bake a cake, but it was as hard as a stone.",
        "First {he} picked some flowers, but a goat ate them.",
        "First {he} painted a picture, but the rain washed it away.",
    ),
    (
        "?",
        "{He} sighed and started again.",
        '"This is harder than I thought," said {n}.',
        "{He} almost gave up.",
    ),
    (
        "Then {he} remembered {o} that {he} had kept for years.",
        "Then {he} saw {ao} in the window of a small shop, and the old man gave it to {him} for a song.",
        "So {he} worked all night and made {ao} with {his} own hands.",
    ),
    (
        "{He} put it in a box and carried it to the house of {m}.",
        "{He} tied a blue ribbon around it and set off.",
    ),
    (
        '"For me?" asked {m}. "It is the best present of my life!"',
        "{m} opened the box, and {mhis} eyes grew wide.",
        '"You made me so happy," said {m}.',
    ),
    (
        "They ate {food} and watched the stars.",
        "They laughed, and {m} felt better at once.",
        "{n} was just as {feel} as {m}.",
    ),
)

ENDINGS: Beat = (
    "From that day on {n} and {m} were the best of friends.",
    "And they lived happily {p} for many years.",
    "That night {n} fell asleep with a smile.",
    "And if you walk by {pl} in the evening, you can still hear them laugh.",
    "It was the best day that {n} could remember.",
    "{n} never forgot that day.",
    "And that is the end of the story.",
    "When the moon came up, everything was quiet {p}.",
)

MORALS: Beat = (
    "A good friend is worth more than gold.",
    "Even the smallest help can change a day.",
    "Being kind is never a mistake.",
    "Sharing makes everything twice as good.",
    "It is brave to try, even when you are afraid.",
    "Patience can move a mountain.",
)
