"""A Kuka iiwa with a parallel gripper grasps a cube and brings it to a target."""
