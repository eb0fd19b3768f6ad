/** One drawn number makes the many small choices of a message. */

/** Numbers of the generator for the many small choices of one message. */
export interface Choices {
  readonly next: (below: number) => number
  readonly pick: <A>(values: ReadonlyArray<A>) => A
  readonly bytes: (count: number) => Buffer
}

/** xorshift32: one drawn number makes as many as a message needs. */
export const choicesFrom = (seed: number): Choices => {
  let state = (seed ^ 0x9e37_79b9) >>> 0 || 1
  const next = (below: number): number => {
    state = (state ^ (state << 13)) >>> 0
    state = (state ^ (state >>> 17)) >>> 0
    state = (state ^ (state << 5)) >>> 0
    return state % below
  }
  return {
    next,
    pick: (values) => values[next(values.length)]!,
    bytes: (count) => Buffer.from(Array.from({ length: count }, () => next(256))),
  }
}
