// bf16 weights. A stage holds SLICE columns of a tile and is one team's. In a step every lane holds 8
// columns of two rows; which column is which k of the tensor core's product does not matter as long as
// weights and vector agree, so both are read as they lie. All 8 columns of the product are the same.

template <class M>
struct Dense {
    static constexpr int STEP = 32;  // columns
    // where a stage has a row: neighbours are half of all banks apart
    static __device__ __forceinline__ u32 offset(int row) {
        return row * 2 * M::SLICE + 64 * ((row + 1) >> 1);
    }

    // One stage by bulk copies: a lane of each producer warp takes every PRODUCERS-th row.
    static __device__ __forceinline__ void copy(u32 stage, u32 full, const Weights& w, int tile, int rows,
                                                int k, u64 policy) {
        if (threadIdx.x & 31) return;
        const u32 bytes = 2 * min(M::SLICE, M::K - k);
        const int copies = ((M::PAIRS ? 2 : 1) * rows + PRODUCERS - 1 - producer()) / PRODUCERS;
        barrier_expect(full, copies * bytes);
#pragma unroll
        for (int i = 0; i < 16 / PRODUCERS; i++) {
            const int part = producer() + i * PRODUCERS;  // of the rows, gates before ups
            if (i >= copies) break;
            const bool up = M::PAIRS && part >= rows;
            const i64 row = up ? tile + part - rows + M::ROWS : tile + part;
            copy_bulk(stage + offset(up ? part - rows + 8 : part), w.values + (row * M::K + k) * 2, bytes,
                      full, policy);
        }
    }

    static __device__ __forceinline__ void stream(const Ring& ring, Turn& turn, const Weights& w, int batch,
                                                  int end, int height, u64 policy) {
        for (int i = 0; i < BATCH; i++) {
            const int tile = batch + i * height;
            if (tile >= end) break;
            for (int k = 0; k < M::K; k += M::SLICE, turn.next()) {
                const u32 stage = ring.wait_empty(turn);
                before_bulk();
                __syncwarp();
                copy(stage, ring.full + 8 * turn.stage, w, tile, min(height, end - tile), k, policy);
            }
        }
    }

    // Adds a slice of a tile to even[] and odd[], element 0 for row g, element 2 for row g + 8.
    static __device__ __forceinline__ void multiply_slice(u32 stage, u32 x, int columns, int rows,
                                                          float (&even)[4], float (&odd)[4]) {
        const int lane = threadIdx.x & 31, g = lane >> 2, c = lane & 3;
        const int steps = columns / STEP;
        // rows that a low tile does not have are read from row 0, and nobody wants their sums
        const int first = g < rows ? g : 0;
        const int second = M::PAIRS ? first + 8 : g + 8 < rows ? g + 8 : 0;
        const u32 upper = stage + offset(first) + 16 * c, lower = stage + offset(second) + 16 * c;
        const u32 v = x + 16 * c;
#pragma unroll 4
        for (int step = member(); step < steps; step += MEMBERS) {
            const uint4 a = load_shared(upper + 64 * step), b = load_shared(lower + 64 * step);
            const uint4 xs = load_shared(v + 64 * step);
            multiply(even, a.x, b.x, a.y, b.y, xs.x, xs.y);
            multiply(odd, a.z, b.z, a.w, b.w, xs.z, xs.w);
        }
    }

    // This warp's part of a batch of tiles.
    static __device__ __forceinline__ void sum_batch(const Ring& ring, Turn& turn, u32 x, u32, int batch, int end,
                                                     int height, Sums& sums) {
        const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
        for (int i = 0; i < BATCH; i++) {
            const int tile = batch + i * height;
            if (tile >= end) break;
            const int rows = min(height, end - tile);
            float even[4] = {0.f, 0.f, 0.f, 0.f}, odd[4] = {0.f, 0.f, 0.f, 0.f};
            for (int j = turn.own(); j < M::SLICES; j += TEAMS) {
                const Turn now = turn.after(j);
                const int k = j * M::SLICE;
                const u32 stage = ring.wait_full(now);
                multiply_slice(stage, x + 2 * k, min(M::SLICE, M::K - k), rows, even, odd);
                ring.give_back(now);
            }
            turn = turn.after(M::SLICES);
            if ((lane & 3) == 0) {
                sums[i][warp][lane >> 2] = even[0] + odd[0];
                sums[i][warp][8 + (lane >> 2)] = even[2] + odd[2];
            }
        }
    }
};
