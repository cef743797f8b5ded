// Attention of one token: a program takes one split of the past of one KV head.
//
// A stage holds the keys and values of TOKENS tokens, 16-byte chunks of a row exchanged by
// `chunk_place` so that neither keys (8 rows side by side) nor values (8 rows transposed) collide in
// the banks. The warps of its team share the tokens, 8 at a time. The heads of a group are rows of
// keys' products and columns of values' products; scores pass from one to the other in registers.
// The newest token is not read from the cache: the last split adds it, and writes it there.

constexpr bool PACKED = KV_MODE != 0;         // 1: int8 with scales, 2: e4m3; multiplied as fp16
constexpr int KV_ROW = PACKED ? D : 2 * D;    // bytes
constexpr int CHUNKS = KV_ROW / 16;
constexpr int TOKENS = 8192 / KV_ROW;         // of a stage
constexpr int EIGHTS = TOKENS / (8 * MEMBERS);  // groups of 8 tokens for each warp
constexpr int KV_VALUES = 8192;               // where a stage has its values
constexpr int KV_SCALES = 16384;              // and its scales: keys', values'
constexpr int VALUE_UP = 64;                  // keeps small weights normal in fp16
static_assert(CHUNKS >= 8 && GROUP <= 8, "rows too short, or too many heads in a group");

__device__ __forceinline__ int chunk_place(int token, int chunk) {
    return chunk ^ (((token & 1) << 2) | ((token >> 1) & 3));
}

struct Split {
    int head, index, begin, end;
    bool live;
    __device__ __forceinline__ Split(int past) {
        head = blockIdx.x / SPLITS;
        index = blockIdx.x % SPLITS;
        live = head < KV_HEADS;
        const int each = ((past + SPLITS - 1) / SPLITS + 7) & ~7;  // scales are copied 8 at a time
        begin = min(index * each, past);
        end = min(begin + each, past);
    }
};

// Rows of keys or of values; a lane has the same chunk of different rows.
__device__ __forceinline__ void copy_tokens(u32 to, const u8* rows, int count, u64 policy) {
    const int thread = threadIdx.x - CONSUMERS, chunk = thread % CHUNKS;
    constexpr int AT_ONCE = PRODUCERS * 32 / CHUNKS;
    const u8* from = rows + thread / CHUNKS * KV_ROW + chunk * 16;
#pragma unroll
    for (int i = 0; i < TOKENS / AT_ONCE; i++) {
        const int token = i * AT_ONCE + thread / CHUNKS;
        const bool real = token < count;
        copy_16(to + token * KV_ROW + chunk_place(token, chunk) * 16,
                real ? from + i * AT_ONCE * KV_ROW : rows, real ? 16 : 0, policy);
    }
}

__device__ __forceinline__ void stream_cache(const Ring& ring, Turn& turn, const Layer& layer,
                                             const Split& split, i64 capacity, u64 policy) {
    if (!split.live) return;
    const int thread = threadIdx.x - CONSUMERS;
    const u8 *keys = layer.keys, *values = layer.values;
    for (int first = split.begin; first < split.end; first += TOKENS) {
        const int count = min(TOKENS, split.end - first);
        const i64 at = split.head * capacity + first;
        const u32 stage = ring.wait_empty(turn);
        const u32 full = ring.full + 8 * turn.stage;
        copy_tokens(stage, keys + at * KV_ROW, count, policy);
        copy_tokens(stage + KV_VALUES, values + at * KV_ROW, count, policy);
        if (KV_MODE == 1 && thread < TOKENS / 4) {
            const int eight = thread % (TOKENS / 8);
            const u8* scales = thread < TOKENS / 8 ? layer.key_scales : layer.value_scales;
            const bool real = eight * 8 < count;
            copy_16(stage + KV_SCALES + thread * 16, scales + 2 * at + (real ? eight * 16 : 0),
                    real ? 16 : 0, policy);
        }
        copies_arrive(full);
        turn.next();
    }
}

// ---- products of one warp ----
__device__ __forceinline__ void score(float (&c)[4], u32 q0, u32 q1, u32 k0, u32 k1) {
    if (PACKED)
        multiply_half(c, q0, 0, q1, 0, k0, k1);
    else
        multiply(c, q0, 0, q1, 0, k0, k1);
}
__device__ __forceinline__ void weigh(float (&c)[4], u32 v0, u32 v1, u32 p) {
    if (PACKED)
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(v0), "r"(v1), "r"(p));
    else
        asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(v0), "r"(v1), "r"(p));
}
// Bytes 0 and 2, and bytes 1 and 3, of four int8 codes as fp16: a code + 128 under 1024 is 1152 + code.
__device__ __forceinline__ void codes(u32 word, u32& even, u32& odd) {
    even = (word & 0x00ff00ffu) ^ 0x64806480u;
    odd = ((word >> 8) & 0x00ff00ffu) ^ 0x64806480u;
    asm("add.rn.f16x2 %0, %0, %1;" : "+r"(even) : "r"(0xe480e480u));
    asm("add.rn.f16x2 %0, %0, %1;" : "+r"(odd) : "r"(0xe480e480u));
}
// Bytes 0, 1 and bytes 2, 3 of four e4m3 as fp16.
__device__ __forceinline__ void floats(u32 word, u32& first, u32& second) {
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(first) : "h"((u16)word));
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(second) : "h"((u16)(word >> 16)));
}
__device__ __forceinline__ u32 halves(u32 a, u32 b, u32 selector) { return __byte_perm(a, b, selector); }

// What a warp has seen of the keys: of head g the largest score (base 2) and this lane's part of the
// sum, of heads 2c and 2c + 1 sixteen dimensions for each tile.
struct Seen {
    float top = NONE, total = 0.f;
    float out[D / 16][4];
    __device__ __forceinline__ Seen() {
#pragma unroll
        for (int i = 0; i < D / 16; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) out[i][j] = 0.f;
    }
};

struct Query {
    u32 word[D / 8];  // dimensions as the products take them
    // queries [8, D] in shared memory, bf16 or fp16; rows beyond the group are zeros
    __device__ __forceinline__ Query(u32 queries) {
        const int lane = threadIdx.x & 31, g = lane >> 2, c = lane & 3;
        const u32 row = queries + g * 2 * D;
        if (!PACKED) {
#pragma unroll
            for (int i = 0; i < D / 32; i++) {
                const uint4 q = load_shared(row + 64 * i + 16 * c);
                word[4 * i] = q.x, word[4 * i + 1] = q.y, word[4 * i + 2] = q.z, word[4 * i + 3] = q.w;
            }
        } else {
#pragma unroll
            for (int i = 0; i < D / 64; i++)
#pragma unroll
                for (int part = 0; part < 2; part++) {
                    const uint4 q = load_shared(row + 128 * i + 32 * c + 16 * part);
                    u32* to = word + 8 * i + 4 * part;
                    if (KV_MODE == 1) {
                        to[0] = halves(q.x, q.y, 0x5410), to[1] = halves(q.x, q.y, 0x7632);
                        to[2] = halves(q.z, q.w, 0x5410), to[3] = halves(q.z, q.w, 0x7632);
                    } else {
                        to[0] = q.x, to[1] = q.y, to[2] = q.z, to[3] = q.w;
                    }
                }
        }
    }
};

__device__ __forceinline__ void score_word(float (&s)[4], const u32* q, u32 word) {
    u32 a, b;
    if (KV_MODE == 1) codes(word, a, b);
    else floats(word, a, b);
    score(s, q[0], q[1], a, b);
}

// Keys of one stage: scores of head g with tokens 2c and 2c + 1 of every eight.
__device__ __forceinline__ void score_stage(u32 stage, const Query& q, int count, float scale,
                                            float (&s)[EIGHTS][2]) {
    const int lane = threadIdx.x & 31, g = lane >> 2, c = lane & 3;
#pragma unroll
    for (int e = 0; e < EIGHTS; e++) {
        const int eight = (e * MEMBERS + member()) * 8;
        const u32 row = stage + (eight + g) * KV_ROW;
        float even[4] = {0.f, 0.f, 0.f, 0.f}, odd[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
        for (int i = 0; i < CHUNKS / 4; i++) {
            const uint4 k = load_shared(row + 16 * chunk_place(eight + g, 4 * i + c));
            if (PACKED) {
                score_word(even, q.word + 8 * i, k.x);
                score_word(odd, q.word + 8 * i + 2, k.y);
                score_word(even, q.word + 8 * i + 4, k.z);
                score_word(odd, q.word + 8 * i + 6, k.w);
            } else {
                score(even, q.word[4 * i], q.word[4 * i + 1], k.x, k.y);
                score(odd, q.word[4 * i + 2], q.word[4 * i + 3], k.z, k.w);
            }
        }
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int token = eight + 2 * c + j;
            float value = (even[j] + odd[j]) * scale;
            if (KV_MODE == 1) {
                value *= widen_half(load_shared_u16(stage + KV_SCALES + 2 * token));
            }
            s[e][j] = token < count ? value : NONE;
        }
    }
}

// Raises the largest score and turns scores into weights.
__device__ __forceinline__ void soften(Seen& seen, float (&s)[EIGHTS][2], int count) {
    const int c = threadIdx.x & 3;
    float top = seen.top;
#pragma unroll
    for (int e = 0; e < EIGHTS; e++) top = fmaxf(top, fmaxf(s[e][0], s[e][1]));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    if (__any_sync(~0u, top != seen.top)) {
        const float shrink = exp2f(seen.top - top);
        seen.total *= shrink;
        seen.top = top;
        const float first = __shfl_sync(~0u, shrink, 8 * c), second = __shfl_sync(~0u, shrink, 8 * c + 4);
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            seen.out[i][0] *= first, seen.out[i][2] *= first;
            seen.out[i][1] *= second, seen.out[i][3] *= second;
        }
    }
#pragma unroll
    for (int e = 0; e < EIGHTS; e++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const bool real = (e * MEMBERS + member()) * 8 + 2 * c + j < count;
            s[e][j] = real ? exp2f(s[e][j] - top) : 0.f;
            seen.total += s[e][j];
        }
}

// Values of one stage.
__device__ __forceinline__ void weigh_stage(u32 stage, Seen& seen, const float (&s)[EIGHTS][2]) {
    const int lane = threadIdx.x & 31, c = lane & 3;
#pragma unroll
    for (int e = 0; e < EIGHTS; e++) {
        const int eight = (e * MEMBERS + member()) * 8, token = eight + (lane & 7);
        u32 p;
        if (KV_MODE == 1) {
            u32 both;
            asm volatile("ld.shared.u32 %0, [%1];"
                         : "=r"(both) : "r"(stage + KV_SCALES + 2 * (TOKENS + eight + 2 * c)) : "memory");
            // behind the last token lie scales that nobody wrote, maybe NaN: a weight of 0 stays 0
            const float first = s[e][0] * VALUE_UP, second = s[e][1] * VALUE_UP;
            p = pack_half(first > 0.f ? first * widen_half((u16)both) : 0.f,
                          second > 0.f ? second * widen_half((u16)(both >> 16)) : 0.f);
        } else {
            p = PACKED ? pack_half(s[e][0], s[e][1]) : pack(s[e][0], s[e][1]);
        }
        const u32 row = stage + KV_VALUES + token * KV_ROW;
#pragma unroll
        for (int i = 0; i < CHUNKS / 4; i++) {
            const uint4 v = load_transposed(row + 16 * chunk_place(token, 4 * i + (lane >> 3)));
            if (!PACKED) {
                weigh(seen.out[2 * i], v.x, v.y, p);
                weigh(seen.out[2 * i + 1], v.z, v.w, p);
            } else {
                const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    u32 a, b;
                    if (KV_MODE == 1) {
                        codes(words[j], a, b);
                    } else {
                        u32 first, second;
                        floats(words[j], first, second);
                        a = halves(first, second, 0x5410), b = halves(first, second, 0x7632);
                    }
                    weigh(seen.out[4 * i + j], a, b, p);
                }
            }
        }
    }
}

// Dimension of row g (+ 8) of tile i of the values' products.
__device__ __forceinline__ int dimension(int tile, int g, int upper) {
    return PACKED ? tile * 16 + 2 * g + upper : tile * 16 + g + 8 * upper;
}

struct AttentionShared {
    u32 queries;            // [8, D], bf16 or fp16
    float* outputs;         // [WARPS, GROUP, D]
    float* tops;            // [WARPS + 1, 8], and behind them the totals
    float* key;             // [D] of the newest token, as the cache holds it
    float* value;           // [D]
};

// All of this split's stages; leaves every warp's part in shared memory.
__device__ __forceinline__ void attend(const Ring& ring, Turn& turn, const Split& split, float scale,
                                       const AttentionShared& shared) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, c = lane & 3;
    const Query query(shared.queries);
    Seen seen;
    const int stages = (split.end - split.begin + TOKENS - 1) / TOKENS;
    for (int i = turn.own(); i < stages; i += TEAMS) {
        const Turn now = turn.after(i);
        const int count = min(TOKENS, split.end - split.begin - i * TOKENS);
        const u32 stage = ring.wait_full(now);
        float s[EIGHTS][2];
        score_stage(stage, query, count, scale, s);
        soften(seen, s, count);
        weigh_stage(stage, seen, s);
        ring.give_back(now);
    }
    turn = turn.after(stages);
    seen.total = quad_sum(seen.total);
    if (c == 0) {
        shared.tops[warp * 8 + g] = seen.top;
        shared.tops[(WARPS + 1) * 8 + warp * 8 + g] = seen.total;
    }
    const float down = KV_MODE == 1 ? 1.f / VALUE_UP : 1.f;
#pragma unroll
    for (int i = 0; i < D / 16; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int head = 2 * c + (j & 1);
            if (head < GROUP)
                shared.outputs[(warp * GROUP + head) * D + dimension(i, g, j >> 1)] = seen.out[i][j] * down;
        }
}
