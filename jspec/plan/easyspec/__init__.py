"""The planner for EasySpec: layers a group, where groups run, width and depth of the tree.

`hardware`, `shapes` and `passes` tell what a pass takes, `acceptance` what a round yields,
`candidates` puts them together; `probe` and `measured` replace assumptions by measurements.
"""

from jspec.plan.easyspec.command import run

__all__ = ["run"]
