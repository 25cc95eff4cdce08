"""Which networks sigcam can explain, tried one by one."""
