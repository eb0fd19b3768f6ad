/**
 * Counts durations in log-linear buckets: 64 to each power of two, so that a quantile is at most 1.6 % too high, in
 * 14 kB whatever the number of values.
 */

/** Buckets for one power of two. Below twice that, each microsecond has its own. */
const subBuckets = 64
/** Microseconds beyond this count as this: 71 minutes. */
const microsMax = 0xffff_ffff
const buckets = 26 * subBuckets + subBuckets

const bucketOf = (micros: number): number => {
  const shift = Math.max(0, 25 - Math.clz32(micros))
  return shift * subBuckets + (micros >>> shift)
}

/** The largest value that a bucket takes. */
const upperBound = (bucket: number): number => {
  const shift = bucket < 2 * subBuckets ? 0 : Math.floor(bucket / subBuckets) - 1
  return (bucket - shift * subBuckets + 1) * 2 ** shift - 1
}

export class Histogram {
  readonly #counts = new Float64Array(buckets)
  #total = 0
  #maxMillis = 0

  record(millis: number): void {
    this.#counts[bucketOf(Math.min(Math.max(Math.round(millis * 1_000), 0), microsMax))]! += 1
    this.#total += 1
    if (millis > this.#maxMillis) this.#maxMillis = millis
  }

  get total(): number {
    return this.#total
  }

  /** The largest value, exact. */
  get maxMillis(): number {
    return this.#maxMillis
  }

  /** The value that a share `q` of all values do not exceed, in milliseconds; 0 when there are none. */
  quantileMillis(q: number): number {
    const rank = Math.max(1, Math.ceil(this.#total * q))
    let seen = 0
    for (let bucket = 0; bucket < buckets; bucket++) {
      seen += this.#counts[bucket]!
      if (seen >= rank) return Math.min(upperBound(bucket) / 1_000, this.#maxMillis)
    }
    return 0
  }

  reset(): void {
    this.#counts.fill(0)
    this.#total = 0
    this.#maxMillis = 0
  }
}
