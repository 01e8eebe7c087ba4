"""Ground floor: settings, randomness, placement and shapes. No science."""
