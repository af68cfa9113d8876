from commands.command_line import here, own_env, trained

__all__ = ["here", "own_env", "trained"]
