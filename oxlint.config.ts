/**
 * Lint rules, and which room of src/ may use which: a room uses those that its line names, all of them below it, and no
 * others. bench/ stands above src/, and test/ above both. docs/architecture.md says what each room is for.
 */
import { defineConfig } from "oxlint"

const uses = {
  cli: [
    "pipeline",
    "observe",
    "letters",
    "load",
    "broker",
    "shard",
    "embedded",
    "client",
    "trace",
    "placement",
    "config",
    "nats",
    "contract",
  ],
  pipeline: ["observe", "broker", "shard", "trace", "placement", "config", "contract"],
  observe: ["broker", "shard", "config", "contract"],
  letters: ["broker", "nats", "contract"],
  load: ["client", "nats", "contract"],
  broker: ["trace", "nats", "contract"],
  shard: ["placement", "config", "contract"],
  embedded: ["nats"],
  client: ["nats", "contract"],
  trace: ["config"],
  placement: [],
  config: ["nats", "contract"],
  nats: [],
  contract: [],
} as const

type Room = keyof typeof uses

const rooms = Object.keys(uses) as ReadonlyArray<Room>

const above = (...folders: ReadonlyArray<string>) => ({
  regex: `^\\.\\./(?:.*/)?(?:${folders.join("|")})/`,
  message: "an arrow that must not be: see oxlint.config.ts",
})

/** The libraries that speak to a server, or to the system. */
const outside = { regex: "^(?:@nats-io/|@effect/sql-pg|@effect/platform-node)", message: "pure, or a twin" }

const restricted = (...patterns: ReadonlyArray<object>) =>
  ({ "no-restricted-imports": ["error", { patterns }] }) as const

const others = (room: Room): ReadonlyArray<string> =>
  rooms.filter((other) => other !== room && !(uses[room] as ReadonlyArray<Room>).includes(other))

export default defineConfig({
  plugins: ["typescript", "unicorn", "oxc", "import"],
  categories: { correctness: "error" },
  rules: {
    "typescript/no-floating-promises": "error",
    "typescript/no-explicit-any": "error",
    "import/no-cycle": ["error", { ignoreTypes: false }],
  },
  overrides: [
    ...rooms.map((room) => {
      const forbidden = above(...others(room), "bench", "test")
      // The two rooms at the bottom are pure.
      const isPure = room === "contract" || room === "placement"
      return { files: [`src/${room}/**`], rules: restricted(...(isPure ? [forbidden, outside] : [forbidden])) }
    }),
    // A twin knows neither NATS nor PostgreSQL.
    {
      files: ["src/broker/Memory*.ts"],
      rules: restricted(above(...others("broker"), "nats", "bench", "test"), outside),
    },
    { files: ["src/shard/Memory*.ts"], rules: restricted(above(...others("shard"), "bench", "test"), outside) },
    { files: ["bench/**"], rules: restricted(above("test")) },
    // The tests' own client shares no codec with the program: a mistake in one would be in both.
    { files: ["test/foreign/**"], rules: restricted(above(...rooms.filter((room) => room !== "embedded"))) },
  ],
  ignorePatterns: ["node_modules", ".objectlog"],
})
