"""From YAML and `key=value` to frozen, checked settings: `config` reads them, `sections` says what there is."""
