/**
 * What the fuzzer sends: requests of many kinds on both subjects, with headers of many kinds. Everything is drawn from one
 * Arbitrary, so a seed decides it.
 */
import { Arbitrary } from "effect"
import * as draw from "../contract/arbitraries.ts"
import { damage } from "../contract/requests.ts"
import { type Choices, choicesFrom } from "./choices.ts"
import { headerShapes } from "./headerBlocks.ts"
import { appends, payloadShapes, reads } from "./payloads.ts"

export interface Message {
  readonly subject: "logs" | "query"
  readonly payloadKind: string
  readonly headersKind: string
  readonly payload: Buffer
  /** The header block, as it goes out. */
  readonly block: Buffer | undefined
  /** What a slow decoder should judge in place of a payload that is nested too deeply for it: the same, but shallow. */
  readonly judged: Buffer
}

/** One of them, as often as its weight says. The Arbitrary would prefer the first and the last of a list. */
const weighted = <A extends readonly [name: string, weight: number, ...ReadonlyArray<unknown>]>(
  choose: Choices,
  shapes: ReadonlyArray<A>,
): A => {
  let left = choose.next(shapes.reduce((sum, [, weight]) => sum + weight, 0))
  return shapes.find(([, weight]) => (left -= weight) < 0)!
}

/** Message number `number`; two drawn with the same number differ in what they share with others. */
export const messages = (maxPayload: number, run: string): Arbitrary.Arbitrary<(number: number) => Message> =>
  Arbitrary.map(
    Arbitrary.all([draw.int(0, 0xffff_ffff), damage, Arbitrary.all([appends, appends]), Arbitrary.all([reads, reads])]),
    ([seed, steps, someAppends, someReads]) =>
      (number) => {
        const choose = choicesFrom(seed ^ Math.imul(number + 1, 0x9e37_79b1))
        const subject = choose.next(100) < 85 ? "logs" : "query"
        const [payloadKind, , makePayload] = weighted(choose, payloadShapes)
        const [headersKind, , makeHeaders] = weighted(choose, headerShapes)
        const [valid, other] = subject === "logs" ? someAppends : someReads
        const shaped = makePayload({ valid, other, steps, choose, subject, maxPayload, number })
        const whole = Buffer.isBuffer(shaped) ? { payload: shaped, judged: shaped } : shaped
        const owner = choose.next(20)
        const shared = `${run}-shared-${owner}`
        const block = makeHeaders({ choose, id: `${run}-${number}`, shared })
        // A server closes the connection of whoever sends more than it takes.
        const room = maxPayload - (block?.byteLength ?? 0)
        // Valid appends with one message id go to one object, so that there are true duplicates.
        const sharing = block?.includes(shared) === true && payloadKind === "valid" && subject === "logs"
        const payload = sharing ? Buffer.from(`{"id":${10_000 + owner},"log":"${number}"}`) : whole.payload
        return {
          subject,
          payloadKind,
          headersKind,
          block,
          payload: payload.subarray(0, room),
          // What is cut is as large as can be: garbage, or a string without its end.
          judged: whole.judged !== whole.payload ? whole.judged : payload.subarray(0, room),
        }
      },
  )
