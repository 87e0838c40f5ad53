"""Which environments apex can use, tried one by one."""
