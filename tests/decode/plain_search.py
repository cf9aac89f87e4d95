"""Beam search as OFA's rules read, one hypothesis at a time on Python lists in float64; slow, and independent of the package."""

from __future__ import annotations

import numpy as np

BOS, PAD, EOS, UNK = 0, 1, 2, 3


def log_softmax(x):
    top = x.max()
    with np.errstate(divide="ignore", invalid="ignore"):
        return x - top - np.log(np.exp(x - top).sum())


def trie_children(members, ids):
    """Tokens that follow `ids` in the set: {EOS} where no member begins so."""
    begun = [(*m, EOS) for m in members if (*m, EOS)[: len(ids)] == tuple(ids)]
    return {m[len(ids)] for m in begun if len(m) > len(ids)} if begun else {EOS}


def token_log_probs(logits, row, t, config, prefix, width, id_range, members):
    """Steps 1 to 5; `row` begins with BOS, `prefix` is the sentence's own, `width` that of the longest in the batch."""
    logits = np.asarray(logits, np.float64) / config.temperature
    size = len(logits)
    allowed = np.ones(size, bool)
    if id_range is not None:
        allowed[4 : id_range[0]] = allowed[id_range[1] :] = False
    if members is not None and len(row) > len(prefix):
        allowed[:] = False
        allowed[list(trie_children(members, row[len(prefix) + 1 :]))] = True
    if config.zero_shot:
        lp = np.where(allowed, log_softmax(logits), -np.inf)
    else:
        lp = log_softmax(np.where(allowed, logits, -np.inf))
    if t < len(prefix):
        own = lp[prefix[t]]
        lp[:] = -np.inf
        lp[prefix[t]] = own
    if t >= width and t < config.min_len:
        lp[EOS] = -np.inf
    lp[np.isnan(lp)] = -np.inf
    lp[PAD] = -np.inf
    lp[UNK] -= config.unk_penalty
    if config.fixed_length and t < config.max_len:
        lp[:4] = -np.inf
    if t >= config.max_len:
        lp[np.arange(size) != EOS] = -np.inf
        if config.ignore_eos:
            lp[EOS] = 1
    n = config.no_repeat_ngram
    if n and t + 2 - n >= 0:
        newest = row[t + 2 - n : t + 1]
        for i in range(len(row) - n + 1):
            if row[i : i + n - 1] == newest:
                lp[row[i + n - 1]] = -np.inf
    return lp


def beam_search(logits_of, config, *, prefix=(), width=0, id_range=None, members=None):
    """Returns [(tokens, score)], best first, of one sentence; logits_of(row) gives the logits [V] after BOS + tokens."""
    live, spent, ended = [([BOS], 0.0)], [False] * config.beam, []
    for t in range(config.max_len + 1):
        candidates = []
        for row, total in live:
            lp = token_log_probs(logits_of(row), row, t, config, prefix, width, id_range, members)
            candidates += [([*row, token], total + lp[token]) for token in range(len(lp))]
        candidates = sorted(candidates, key=lambda c: -c[1])[: 2 * config.beam]
        stays_behind = [row[-1] == EOS and score > -np.inf for row, score in candidates]
        for rank in range(config.beam):
            row, score = candidates[rank]
            if stays_behind[rank] and not spent[rank] and len(ended) < config.beam:
                ended.append((row[1:], score / (t + 1) ** config.lenpen if config.normalise else score))
            stays_behind[rank] |= spent[rank]
        if len(ended) == config.beam:
            break
        order = sorted(range(len(candidates)), key=lambda rank: (stays_behind[rank], rank))[: config.beam]
        live, spent = [candidates[rank] for rank in order], [stays_behind[rank] for rank in order]
        assert not any(spent), "the package leaves spent slots out, because there are none"
    return sorted(ended, key=lambda e: -e[1])
