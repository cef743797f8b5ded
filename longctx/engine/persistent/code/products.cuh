// Matrix times vector, whatever the weights: what the warps of a program summed becomes rows.

template <int FORMAT, class M>
struct Choose { typedef Dense<M> Type; };
template <class M>
struct Choose<1, M> { typedef Packed<M> Type; };
template <class M>
using Format = typename Choose<M::FORMAT, M>::Type;

template <class M>
__device__ __forceinline__ void stream(const Ring& ring, Turn& turn, const Weights w, u64 policy) {
    const int begin = M::first(blockIdx.x), end = M::first(blockIdx.x + 1);
    const int height = M::height(end - begin);
    for (int batch = begin; batch < end; batch += BATCH * height)
        Format<M>::stream(ring, turn, w, batch, end, height, policy);
}

// Consumes what `stream` produces. before(row) is called by the thread that will call
// finish(row, sum, sum of the paired row, what before gave), ahead of the weights.
template <class M, class Before, class Finish>
__device__ __forceinline__ void product(const Ring& ring, Turn& turn, const Weights w, u32 x,
                                        u32 zeros, Sums* sums, Before before, Finish finish) {
    const int begin = M::first(blockIdx.x), end = M::first(blockIdx.x + 1);
    const int height = M::height(end - begin);
    int buffer = 0;
    for (int batch = begin; batch < end; batch += BATCH * height, buffer ^= 1) {
        // this thread's row of the batch
        const int tile = threadIdx.x / M::TILE, at = threadIdx.x % M::TILE;
        const int row = batch + tile * height + at;
        const bool mine = tile < BATCH && at < height && row < end;
        float carried = 0.f, factor = 1.f, other_factor = 1.f;
        if (mine) {
            carried = before(row);
            if (M::FORMAT == 1) {
                factor = w.whole[row];
                if (M::PAIRS) other_factor = w.whole[row + M::ROWS];
            }
        }
        Format<M>::sum_batch(ring, turn, x, zeros, batch, end, height, sums[buffer]);
        consumers_sync();
        if (mine) {
            float sum = 0.f, other = 0.f;
#pragma unroll
            for (int i = 0; i < WARPS; i++) {
                sum += sums[buffer][tile][i][at];
                if (M::PAIRS) other += sums[buffer][tile][i][8 + at];
            }
            if (M::FORMAT == 1) {
                sum = DIVIDE ? sum * REST / factor : sum * REST * factor;
                other = DIVIDE ? other * REST / other_factor : other * REST * other_factor;
            }
            finish(row, sum, other, carried);
        }
    }
}
