"""Training and testing on PyTorch Lightning.

`config` holds the settings, `schedule` the learning rate, `module` the steps, `data` the loaders, `run` a
whole training (`run.fit`) and a whole test (`run.evaluate`). Import from the modules: this package itself
loads nothing heavy.
"""
