"""What strangers may send, each from a few connections, at full speed and for ever: cases of `disturbances`.

``wire``: the keys of both sides, and the loop that sends, throws answers away, and connects again. ``framing``: frames
of WebSockets. ``connecting``: connections and handshakes. ``calling``: HTTP requests and their bodies. ``messages``:
messages that cost much to decode. ``working``: jobs, and readers that do not read. ``costly``: prompts and forms that
cost much to prepare.
"""
