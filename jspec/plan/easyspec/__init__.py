"""The planner for EasySpec: layers a group, where groups run, width and depth of the tree."""
