"""stemdl core: from an atomically resolved STEM image to atoms, bonds, defects and their movements."""
