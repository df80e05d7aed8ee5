"""How far a model's zero-shot accuracy holds up: corruptions, low resolution, attacks, written words, another style.

Each module is one evaluation of `opencoca.eval.registry`, on pictures with one class each (`pictures.open_pictures`).
What is changed is the square that the model sees, uint8 at its own size; all that is random is drawn from the seed
and the picture's id, so that every model sees the same change and a rerun gives the same figures.
"""
