"""DiffuSpec: a diffusion model fills a block of masks; a search through its candidates drafts."""
