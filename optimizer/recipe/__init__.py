"""The recipe: model, loader with line and column, and the steps derived from it."""
