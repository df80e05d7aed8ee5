"""Tasks beside pretraining: each is a `train.task.Task` over a head of the model (`model.heads`)."""
