// One token through the whole model in one launch: PROGRAMS programs of PRODUCERS warps, which stream
// weights and KV cache through shared memory without a pause, and WARPS consumer warps, which send
// what they computed to all other programs wherever a layer needs the whole vector. What is streamed
// does not depend on the token, so memory is busy while they wait for each other.

typedef Matrix<HIDDEN, QKV_ROWS, QKV_TILE, QKV_SLICE, false, WEIGHT_FORMAT> Qkv;
typedef Matrix<HEADS * D, HIDDEN, O_TILE, O_SLICE, false, WEIGHT_FORMAT> Out;
typedef Matrix<HIDDEN, INTER, GATE_UP_TILE, GATE_UP_SLICE, true, WEIGHT_FORMAT> GateUp;
typedef Matrix<INTER, HIDDEN, DOWN_TILE, DOWN_SLICE, false, WEIGHT_FORMAT> Down;
typedef Matrix<HIDDEN, VOCAB, HEAD_TILE, HEAD_SLICE, false, 0> Head;

__device__ __forceinline__ void produce(const Arguments& a, const Ring& ring) {
    Turn turn;
    const u64 policy = read_once();
    const Split split((int)*a.state.position);
    for (int i = 0; i < LAYERS; i++) {
        const Layer& layer = layers[i];
        stream<Qkv>(ring, turn, layer.qkv, policy);
        stream_cache(ring, turn, layer, split, a.capacity, policy);
        stream<Out>(ring, turn, layer.o, policy);
        stream<GateUp>(ring, turn, layer.gate_up, policy);
        stream<Down>(ring, turn, layer.down, policy);
    }
    const Weights head = {a.head, nullptr, nullptr};
    stream<Head>(ring, turn, head, policy);
}

__device__ __forceinline__ float silu(float gate) { return gate / (1.f + expf(-gate)); }

// Orders as the values do, and among equals the lower index first; the lowest 12 bits are free.
static_assert(VOCAB < 1 << 20, "an id has 20 bits");
__device__ __forceinline__ u64 ranked(float value, int index) {
    const u32 bits = __float_as_uint(value);
    const u32 key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (u64)key << 32 | (u64)(0xfffffu - (u32)index) << 12;
}

__device__ __forceinline__ u64 highest(u64 best) {
#pragma unroll
    for (int offset = 16; offset; offset >>= 1) {
        const u64 other = __shfl_xor_sync(~0u, best, offset);
        if (other > best) best = other;
    }
    return best;
}

__device__ __forceinline__ void consume(const Arguments& a, const Ring& ring, const Shared& shared) {
    Turn turn;
    const State& s = a.state;
    const i64 launch = *s.launches;
    const int position = (int)*s.position;
    const u16* token = a.embed + *s.token * HIDDEN;
    const Split split(position);
    for (int i = threadIdx.x; i < 8 * D; i += CONSUMERS)  // rows beyond the group stay zeros
        store_shared_u16(shared.attention.queries + 2 * i, 0);
    if (threadIdx.x < D / 2) {
        const float angle = (float)position * a.frequencies[threadIdx.x];
        shared.turned[threadIdx.x] = cosf(angle) * a.rope_factor;
        shared.turned[D / 2 + threadIdx.x] = sinf(angle) * a.rope_factor;
    }
    auto nothing = [](int) { return 0.f; };
    u32 tag = (u32)launch * LAYERS;
    for (int i = 0; i < LAYERS; i++) {
        const Layer& layer = layers[i];
        const u16* plain = i ? nullptr : token;
        const u32 last = tag++;
        MARK(i, 0)
        {
            const Normed normed(layer.input_norm);
            normed.store<WEIGHT_FORMAT>(s.stream, plain, last, a.eps, shared);
        }
        MARK(i, 1)
        const u16* bias = layer.qkv_bias;
        product<Qkv>(
            ring, turn, layer.qkv, shared.x, shared.zeros, shared.sums,
            [&](int row) { return bias ? widen(bias[row]) : 0.f; },
            [&](int row, float sum, float, float add) { send_bf16(s.mixed + row, sum + add, tag); });
        MARK(i, 2)
        if (split.live) {
            prepare_attention(a, layer, split, position, tag, shared);
            MARK(i, 3)
            score_newest(a, split.index == SPLITS - 1, shared);
            attend(ring, turn, split, a.scale, shared.attention);
            MARK(i, 4)
            consumers_sync();
            merge_warps(a, split, tag, shared);
        }
        consumers_sync();  // what was merged lay where the next vector goes, and sums where parts go
        merge_splits(a, tag, shared);
        store_vector<Out::K, WEIGHT_FORMAT>(s.attended, tag, shared);
        MARK(i, 5)
        const u16* out_bias = layer.o_bias;
        product<Out>(
            ring, turn, layer.o, shared.x, shared.zeros, shared.sums,
            [&](int row) {
                const float before = plain ? widen(plain[row]) : high(load_u32(s.stream + row));
                return before + (out_bias ? widen(out_bias[row]) : 0.f);
            },
            [&](int row, float sum, float, float add) { send_bf16(s.middle + row, sum + add, tag); });
        MARK(i, 6)
        {
            const Normed normed(layer.post_norm);
            normed.store<WEIGHT_FORMAT>(s.middle, nullptr, tag, a.eps, shared);
        }
        MARK(i, 7)
        product<GateUp>(
            ring, turn, layer.gate_up, shared.x, shared.zeros, shared.sums, nothing,
            [&](int row, float gate, float up, float) { send_bf16(s.active + row, silu(gate) * up, tag); });
        MARK(i, 8)
        store_vector<Down::K, WEIGHT_FORMAT>(s.active, tag, shared);
        MARK(i, 9)
        product<Down>(
            ring, turn, layer.down, shared.x, shared.zeros, shared.sums,
            [&](int row) { return high(load_u32(s.middle + row)); },
            [&](int row, float sum, float, float add) { send_bf16(s.stream + row, sum + add, tag); });
        MARK(i, 10)
    }
    {
        const Normed normed(a.norm);
        normed.store<0>(s.stream, nullptr, tag, a.eps, shared);
    }
    MARK(LAYERS, 0)
    u64 best = 0;
    const Weights head = {a.head, nullptr, nullptr};
    product<Head>(ring, turn, head, shared.x, shared.zeros, shared.sums, nothing,
                  [&](int row, float sum, float, float) {
                      s.logits[row] = sum;
                      const u64 rank = ranked(sum, row);
                      if (rank > best) best = rank;
                  });
    MARK(LAYERS, 1)
    const u64 mark = (u64)(launch + 1) & 0xfff;
    best = highest(best);
    if ((threadIdx.x & 31) == 0 && threadIdx.x < 16 * BATCH)  // the warps that finish rows
        asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(s.best + blockIdx.x * (BATCH / 2) +
                                                                 threadIdx.x / 32),
                     "l"(best | mark) : "memory");
    if (blockIdx.x || threadIdx.x >= 32) return;
    best = 0;
    for (int i = threadIdx.x; i < PROGRAMS * (BATCH / 2); i += 32) {
        u64 other;
        do other = load_u64(s.best + i);
        while ((other & 0xfff) != mark);
        if (other > best) best = other;
    }
    best = highest(best);
    if (threadIdx.x == 0) {  // every program has read these
        const i64 chosen = 0xfffffu - (u32)(best >> 12 & 0xfffff);
        *s.following = chosen;
        *s.token = chosen;
        *s.position = position + 1;
        *s.launches = launch + 1;
        asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(s.answer),
                     "l"((u64)(launch + 1) << 32 | (u64)chosen) : "memory");
    }
}

extern "C" __global__ void __launch_bounds__(CONSUMERS + 32 * PRODUCERS, 1) decode_token(const Arguments a) {
    extern __shared__ __align__(1024) u8 memory[];
    __shared__ __align__(16) u8 queries[8 * D * 2];
    __shared__ Sums sums[2];
    __shared__ __align__(16) u32 zeros[16];
    __shared__ float small[16], turned[D];
    __shared__ float tops[2 * (WARPS + 1) * 8], key[D], value[D];
    __shared__ __align__(8) u64 barriers[2 * STAGES];
    const u32 base = shared_address(memory);
    const Ring ring = {base, shared_address(barriers), shared_address(barriers + STAGES)};
    if (threadIdx.x < 16) zeros[threadIdx.x] = 0;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(ring.full + 8 * i, PRODUCERS);
            barrier_init(ring.empty + 8 * i, MEMBERS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x >= CONSUMERS) {
        produce(a, ring);
        return;
    }
    Shared shared;
    shared.x = base + STAGES * STAGE_BYTES;
    shared.zeros = shared_address(zeros);
    shared.sums = sums;
    shared.small = small;
    shared.turned = turned;
    shared.reduce = (float*)sums;  // not at the same time
    shared.attention.queries = shared_address(queries);
    shared.attention.outputs = (float*)(memory + STAGES * STAGE_BYTES);
    shared.attention.tops = tops;
    shared.attention.key = key;
    shared.attention.value = value;
    consume(a, ring, shared);
}
