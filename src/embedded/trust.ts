/** Refuses what somebody else may have put in our place. */
import { Effect, Schema } from "effect"
import { foreignEntry } from "./foreignEntry.js"

/** An entry on the way to a path is neither ours nor the system's. */
export class ForeignEntry extends Schema.TaggedError<ForeignEntry>()("ForeignEntry", {
  path: Schema.String,
  problem: Schema.String,
}) {
  override get message(): string {
    return `${this.path}: ${this.problem}`
  }
}

const notUsed = " and may have been put there for us, so it is not used; remove it, or choose another place"

/** Fails where anything on the way to `path`, or it itself, is somebody else's in a public place. `account` is one of ours. */
export const refuseForeign = (path: string, account?: number): Effect.Effect<void, ForeignEntry> =>
  Effect.suspend(() => {
    const found = foreignEntry(path, account)
    return found === undefined
      ? Effect.void
      : Effect.fail(new ForeignEntry({ ...found, problem: `${found.problem}${notUsed}` }))
  })
