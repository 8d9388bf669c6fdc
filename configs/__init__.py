"""Presets: YAML files that :func:`maediff.config.load_config` finds by name."""
