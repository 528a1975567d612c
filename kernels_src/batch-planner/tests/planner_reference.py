"""What a step and a hash are, in plain Python: no numpy, no cleverness."""

from __future__ import annotations

from dataclasses import dataclass

MASK = 2**64 - 1


@dataclass(frozen=True)
class Plan:
    tokens: list[int]
    positions: list[int]
    slot_mapping: list[int]
    block_tables: list[list[int]]
    seq_lens: list[int]
    query_start_loc: list[int]
    sample_rows: list[int]


def plan_step(seq_lens, query_lens, block_tables, block_size, max_blocks, tokens, token_budget) -> Plan:
    """One token at a time, in order; `token_budget` None has no limit, `max_blocks` None takes the widest."""
    rows: list[tuple[int, int, int]] = []  # token, position, slot
    starts, ends, samples, used = [0], [], [], []
    for sequence, (length, wanted) in enumerate(zip(seq_lens, query_lens)):
        end = length - wanted
        while end < length and (token_budget is None or len(rows) < token_budget):
            slot = block_tables[sequence][end // block_size] * block_size + end % block_size
            rows.append((tokens[sequence][end], end, slot))
            end += 1
        if len(rows) > starts[-1] and end == len(tokens[sequence]):
            samples.append(len(rows) - 1)
        starts.append(len(rows))
        ends.append(end)
        used.append(block_tables[sequence][: -(-end // block_size)])
    width = max_blocks if max_blocks is not None else max(map(len, used), default=0)
    tables = [blocks + [0] * (width - len(blocks)) for blocks in used]
    token_ids, positions, slots = ([row[k] for row in rows] for k in range(3))
    return Plan(token_ids, positions, slots, tables, ends, starts, samples)


def siphash128(key: bytes, text: bytes) -> bytes:
    """SipHash-2-4 with 16 bytes of output, word by word from the paper's definition."""
    k = [int.from_bytes(key[i : i + 8], "little") for i in (0, 8)]
    v = [
        k[0] ^ int.from_bytes(b"somepseu", "big"),
        k[1] ^ int.from_bytes(b"dorandom", "big") ^ 0xEE,
        k[0] ^ int.from_bytes(b"lygenera", "big"),
        k[1] ^ int.from_bytes(b"tedbytes", "big"),
    ]

    def half(a: int, b: int, bits: int) -> None:
        v[a] = (v[a] + v[b]) & MASK
        v[b] = ((v[b] << bits | v[b] >> (64 - bits)) & MASK) ^ v[a]

    def rounds(count: int) -> None:
        for _ in range(count):
            half(0, 1, 13)
            half(2, 3, 16)
            v[0] = (v[0] << 32 | v[0] >> 32) & MASK
            half(0, 3, 21)
            half(2, 1, 17)
            v[2] = (v[2] << 32 | v[2] >> 32) & MASK

    padded = text + bytes(7 - len(text) % 8) + bytes([len(text) & 0xFF])
    for i in range(0, len(padded), 8):
        word = int.from_bytes(padded[i : i + 8], "little")
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    out = b""
    for lane, mark in ((2, 0xEE), (1, 0xDD)):
        v[lane] ^= mark
        rounds(4)
        out += (v[0] ^ v[1] ^ v[2] ^ v[3]).to_bytes(8, "little")
    return out


def hash_blocks(token_ids, block_size, seed, parent) -> list[bytes]:
    """One hash per full block: of the hash before it and its tokens as 64-bit integers."""
    hashes = []
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        block = token_ids[start : start + block_size]
        text = parent + b"".join(token.to_bytes(8, "little", signed=True) for token in block)
        parent = siphash128(seed.to_bytes(16, "little"), text)
        hashes.append(parent)
    return hashes
