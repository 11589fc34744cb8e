"""One decision engine on cached answers: ask one agent, several, one after another, or none; and promises about it."""
