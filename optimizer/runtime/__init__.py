"""Open a bundle or an artifact and infer, with numpy and one backend."""
