"""What a balancing method of one's own is made from: `avpt fuse-train --balance package.module:Class`.

`Balancing` is derived from, `Joint` is the run that it finds, `Forward` a pass over some clips, `Step` what has been
back-propagated, `PlainClips` the clips between two epochs.
"""

from avpt.training.balancing.method import Balancing, Forward, Joint, PlainClips, Step

__all__ = ["Balancing", "Forward", "Joint", "PlainClips", "Step"]
