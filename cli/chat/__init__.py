"""`pippin chat`: a conversation in the terminal, with a model of this process or of a server."""
