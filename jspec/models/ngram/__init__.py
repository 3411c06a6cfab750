"""N-gram models: on the host, as estimation makes them, and as tables on the device."""
