from commands.command_line import here, own_world, trained

__all__ = ["here", "own_world", "trained"]
