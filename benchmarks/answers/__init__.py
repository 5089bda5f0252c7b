"""How true the answers of a server are, at the defaults and in replays of recorded runs."""
