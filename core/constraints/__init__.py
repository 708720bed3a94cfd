"""What an answer may hold: from rules to a mask for every token. Plain Python and llguidance."""
