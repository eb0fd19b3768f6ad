/** Which broker the client commands talk to. */
import { Effect, FileSystem, Option, Redacted, Result, Schema } from "effect"
import { readServers } from "../nats/connectionOptions.ts"
import { type ConfigInvalid, dataDir as dataDirSetting, natsUrl, topics } from "../config/Config.ts"
import { hasPrograms } from "../embedded/postgresPrograms.ts"

/** Neither `NATS_URL` nor a running embedded server says where to connect to. */
export class NoServer extends Schema.TaggedError<NoServer>()("NoServer", {
  dataDir: Schema.String,
  /** Not in an image, for example, which leaves the programs out. */
  couldRun: Schema.Boolean,
}) {
  override get message(): string {
    return this.couldRun
      ? `NATS_URL is not set and no embedded server runs in ${this.dataDir}: start one with npm start, or set NATS_URL`
      : "NATS_URL is not set: set it to the address of the broker, such as nats://host:4222"
  }
}

/** An embedded server runs, of whose address this user can't read the credentials. */
export class ServerOfAnother extends Schema.TaggedError<ServerOfAnother>()("ServerOfAnother", {
  dataDir: Schema.String,
}) {
  override get message(): string {
    return `the embedded server in ${this.dataDir} belongs to another user: set NATS_URL to what \`objectlog url\` prints for that one`
  }
}

/** Where a client connects to, and the subjects of the contract. */
export interface ClientServers {
  /** Comma-separated server list; may carry credentials. */
  readonly servers: Redacted.Redacted
  readonly logsTopic: string
  readonly queryTopic: string
  readonly deadTopic: string
  readonly responseTopic: string
}

/** `running.json` in the data folder: what `objectlog start` records while it runs. */
const Running = Schema.fromJsonString(Schema.Struct({ nats: Schema.String, pid: Schema.Int }))
const decodeRunning = Schema.decodeUnknownOption(Running)

const isAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    // It is there, but belongs to another user: the embedded servers of root are seen that way.
    return error instanceof Error && "code" in error && error.code === "EPERM"
  }
}

/** The address of the embedded server that runs in `DATA_DIR`; a record of a process that is gone counts as none. */
export const embeddedServer = Effect.gen(function* () {
  const fs = yield* FileSystem.FileSystem
  const dataDir = yield* dataDirSetting
  const text = yield* fs.readFileString(`${dataDir}/running.json`).pipe(
    Effect.catchIf(
      (error) => error.reason._tag === "PermissionDenied",
      () => Effect.fail(new ServerOfAnother({ dataDir })),
    ),
    Effect.catchTag("PlatformError", () => Effect.succeed(undefined)),
    Effect.map(Option.fromUndefinedOr),
  )
  const running = Option.flatMap(text, decodeRunning)
  if (
    Option.isNone(running) ||
    running.value.pid <= 0 ||
    !isAlive(running.value.pid) ||
    Result.isFailure(readServers(running.value.nats))
  ) {
    return yield* new NoServer({ dataDir, couldRun: yield* hasPrograms })
  }
  return Redacted.make(running.value.nats)
})

/** `NATS_URL`, else the running embedded server of `DATA_DIR`. Reads no setting that concerns a database. */
export const serversFor: Effect.Effect<
  ClientServers,
  ConfigInvalid | NoServer | ServerOfAnother,
  FileSystem.FileSystem
> = Effect.gen(function* () {
  const { dead: deadTopic, logs: logsTopic, query: queryTopic, response: responseTopic } = yield* topics
  const servers = (yield* natsUrl) ?? (yield* embeddedServer)
  return { servers, logsTopic, queryTopic, responseTopic, deadTopic }
})
