/**
 * Which messages are traced. Decided before anything is made for a message: from the header of its sender, or by one
 * random number, so that the many that are not sampled cost next to nothing.
 *
 * A share of the traces is chosen by their ids, as every OpenTelemetry SDK does: a trace is in the share if the last eight
 * bytes of its id, as a number, are small enough. So services that sample the same share sample the same traces.
 */
import type { Sampling } from "../config/TracingSettings.ts"
import type { TraceParent } from "./traceContext.ts"

export interface Sampler {
  /** Is a message of this sender traced? */
  readonly follows: (parent: TraceParent) => boolean
  /** The id of a new trace for a message that has no parent; `undefined` where it is not traced. */
  readonly begins: () => string | undefined
}

/** Decided by the first 52 of the 64 bits: that is what a double holds, and finer than anybody's share. */
const range = 2 ** 52
const decidingDigits = 13

/** The thirteen digits that decide, of the sixteen of the last eight bytes. */
const point = (traceId: string): number => Number.parseInt(traceId.slice(16, 16 + decidingDigits), 16)

const randomDigits = (digits: number): string =>
  Math.floor(Math.random() * 16 ** digits)
    .toString(16)
    .padStart(digits, "0")

export const make = ({ heedsParent, share }: Sampling): Sampler => {
  const bound = share * range
  return {
    follows: ({ sampled, traceId }) => (heedsParent ? sampled : point(traceId) < bound),
    begins: () => {
      const drawn = Math.floor(Math.random() * range)
      if (drawn >= bound) return undefined
      // Ids of zeros alone are not allowed; the first digit is never zero here, which costs four bits of chance.
      const first = 1 + Math.floor(Math.random() * 15)
      return `${first.toString(16)}${randomDigits(7)}${randomDigits(8)}${drawn.toString(16).padStart(decidingDigits, "0")}${randomDigits(3)}`
    },
  }
}
