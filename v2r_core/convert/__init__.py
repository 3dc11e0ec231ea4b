"""One recording as another kind: rosbag2, LeRobotDataset v3, folder of videos."""
