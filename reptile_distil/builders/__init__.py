"""From a configuration to a loss, and to a method or loss of the user's own."""
