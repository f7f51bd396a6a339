"""Launch of grids: `launcher` does or submits all stages, `view` reads their states, `cancel` ends them."""
