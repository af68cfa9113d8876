"""Search for the settings with which an algorithm learns an env best."""
