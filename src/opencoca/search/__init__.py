"""Finding pictures: an index of a folder that is kept on disk, and what can be asked of it.

    from opencoca.search.index import Index
    from opencoca.search.filters import Filters

    index = Index.open("holiday/", predictor)          # DataError with the repair, never half an index
    index = Index.make("holiday/", predictor)          # the same, after bringing it up to date
    len(index)                                         # pictures in it
    hits = index.search("a boat on a lake", k=20)      # list[Hit], the best first
    hits = index.search(embed_E, k=20, filters=Filters(after=date(2024, 1, 1), folder="summer"))
    hits[0].id, .path, .score, .caption, .why, .good   # ids are what a page may see; paths are for the owner
    index.thumbnail(hits[0].id, 256)                   # bytes of a JPEG at most 256 px wide and high
    index.picture(hits[0].id)                          # Picture(id, path, caption, date, bytes); DataError: unknown id

`Index` is thread-safe for reading and never changes: `Index.open` again after an update. A query is a sentence, an
arithmetic of quoted sentences and `id:7` (`"red car" + id:7 - night`, see `query.py`), or a unit-norm embedding [E].
Strings never name files here: a caller that lets its user do so passes `pictures=` to `Index.embed`. `search(...,
blend=0.3)` lets the captions' words count for so much. `hit.good` is False where the picture is no better than what
unrelated words find in the same index.

Behind `Index` stands a `Backend` (`backend.py`): a folder of memory-mapped files (`store.py`), or any other store of
embeddings that has its four methods.

Importing `search`, `search.answers`, `search.client`, `search.filters`, `search.files`, `search.places` or
`search.query` imports no torch.
"""
