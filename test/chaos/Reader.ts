/** Reads through the service: during the run, to see that nothing acknowledged is ever missing, and at its end. */
import { Effect, type Scope } from "effect"
import { type Append, type Ledger, type ObjectRecord, placeOf } from "./Ledger.ts"
import { Randomness } from "./Randomness.ts"
import type { Entry } from "../foreign/Event.ts"
import { makeReadConnection, read } from "../foreign/read.ts"

/** What is wrong with a read from `from` on, given what was acknowledged before it was sent. */
const problemsOf = (
  object: ObjectRecord,
  from: number,
  entries: ReadonlyArray<Entry>,
  acknowledged: ReadonlyArray<Append>,
  inCommitOrder: boolean,
): ReadonlyArray<string> => {
  const problems: Array<string> = []
  const byPosition = new Map(entries.map((entry) => [entry.position, entry]))
  for (let i = 0; i < entries.length; i++) {
    if (!byPosition.has(from + i + 1))
      problems.push(`position ${from + i + 1} is missing among ${entries.length} entries`)
    if (i === 0) continue
    const [before, entry] = [entries[i - 1]!, entries[i]!]
    if (inCommitOrder ? entry.position !== before.position + 1 : entry.timestamp < before.timestamp) {
      problems.push(`entry ${entry.position} comes after entry ${before.position}`)
    }
  }
  for (const { n, answers } of acknowledged) {
    for (const { position, seq } of answers) {
      if (position <= from) continue
      const found = byPosition.get(position)
      if (found?.seq !== seq || placeOf(found.log)?.n !== n) {
        problems.push(`append ${n} was acknowledged at position ${position} and is not there`)
      }
    }
  }
  return problems.map((problem) => `read of object ${object.index}: ${problem}`)
}

export interface Reader {
  readonly answered: () => number
  readonly unanswered: () => number
}

/** Reads objects at random until the scope closes, so many a second; tells of everything that must not be. */
export const startReader = Effect.fnUntraced(function* (
  ledger: Ledger,
  options: { readonly servers: string; readonly seed: number; readonly perSecond: number },
  violation: (problem: string) => void,
): Effect.fn.Return<Reader, never, Scope.Scope> {
  const connection = yield* makeReadConnection(options.servers)
  const random = new Randomness(options.seed ^ 0x7ead)
  const longest = new Map<ObjectRecord, number>()
  let answered = 0
  let unanswered = 0
  const one = Effect.gen(function* () {
    const object = random.pick(ledger.objects)
    const acknowledged = object.appends.filter((append) => append.answers.length > 0)
    const known = longest.get(object) ?? 0
    const follows = known > 0 && random.chance(0.5)
    const from = follows ? random.between(0, known - 1) : 0
    const fields = follows ? { after_position: from } : {}
    const found = yield* read(connection, { id: object.id, fields }, 10_000)
    if (found === undefined) return void unanswered++
    answered++
    const length = from + found.entries.length
    if (length < known) violation(`read of object ${object.index}: ${length} entries after ${known} were read`)
    longest.set(object, Math.max(known, longest.get(object) ?? 0, length))
    for (const problem of problemsOf(object, from, found.entries, acknowledged, follows)) violation(problem)
  })
  const lane = Effect.forever(Effect.andThen(one, Effect.sleep(4_000 / options.perSecond)))
  yield* Effect.all([lane, lane, lane, lane], { concurrency: "unbounded", discard: true }).pipe(Effect.forkScoped)
  return { answered: () => answered, unanswered: () => unanswered }
})
