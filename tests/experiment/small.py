"""Settings under which a real recipe runs in a second or two."""

SMALL = {
    "epochs": "2",
    "dataset.train_limit": "96",
    "dataset.validation": "32",
    "dataset.test": "32",
    "batch_size": "32",
    "model.d_model": "8",
    "model.num_layers": "1",
    "monitor.train": "16",
    "monitor.validation": "32",
    "monitor.test": "0",
    "monitor.every": "1",
    "monitor.attack.steps": "2",
    "attacks": '[{"name": "pgd", "steps": 2}, {"name": "pgd", "steps": 3, "restarts": 2}]',
    "log_every": "1",
}
