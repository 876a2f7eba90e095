"""HTTP: a route parses, makes one service call and answers."""
