/** A data folder, and what is wrong with it in the words of who set it. */
import { Effect, Schema } from "effect"
import type { PlatformError } from "effect/PlatformError"
import { lstatSync, mkdirSync, statSync } from "node:fs"
import { dirname } from "node:path"
import { codeOf, reasonText } from "./systemError.ts"
import { refuseForeign } from "./trust.ts"

/** Something in it can't be made, read or written. */
export class DataFolderUnusable extends Schema.TaggedError<DataFolderUnusable>()("DataFolderUnusable", {
  path: Schema.String,
  reason: Schema.String,
}) {
  override get message(): string {
    return `DATA_DIR: ${this.path}: ${this.reason}`
  }
}

/** The path that an error is about, where it says one. */
export const pathOf = ({ reason }: PlatformError): string | undefined =>
  "pathOrDescriptor" in reason && typeof reason.pathOrDescriptor === "string" ? reason.pathOrDescriptor : undefined

/** For what is done in this data folder. */
export const unusable = (folder: string) => (error: PlatformError) =>
  Effect.fail(new DataFolderUnusable({ path: pathOf(error) ?? folder, reason: reasonText(error) }))

/** Node's own `recursive` never ends where a folder that is there lets nothing be made in it, as behind a broken link. */
const makeFolder = (folder: string): void => {
  try {
    mkdirSync(folder)
  } catch (error) {
    const code = codeOf(error)
    if (code === "EEXIST") {
      if (statSync(folder).isDirectory()) return
      throw new Error("is not a folder")
    }
    if (code !== "ENOENT" || dirname(folder) === folder || isThere(dirname(folder))) throw error
    makeFolder(dirname(folder))
    mkdirSync(folder)
  }
}

const isThere = (path: string): boolean => lstatSync(path, { throwIfNoEntry: false }) !== undefined

/** Makes a data folder where it is missing; refuses one that somebody else has made for us. */
export const ownFolder = Effect.fnUntraced(function* (folder: string) {
  const notForeign = Effect.mapError(
    refuseForeign(folder),
    ({ path, problem }) => new DataFolderUnusable({ path, reason: problem }),
  )
  // Before, so that nothing is made behind a link of somebody else; and after, since one may come in between.
  yield* notForeign
  yield* Effect.try({
    try: () => makeFolder(folder),
    catch: (error) => new DataFolderUnusable({ path: folder, reason: reasonText(error) }),
  })
  yield* notForeign
})
