/** The server's records, by the names that the page uses. `schema.gen.ts` comes from openapi.json: `npm run generate`. */

import type { components } from "./schema.gen";

type Schemas = components["schemas"];

export type SessionStatus = Schemas["SessionStatus"];
export type TaskStatus = Schemas["TaskStatus"];
export type AgentMode = Schemas["AgentMode"];
export type Approval = Schemas["Approval"];

export type Actor = Schemas["ActorOut"];
export type Answer = Schemas["AnswerIn"];
export type Artifact = Schemas["ArtifactOut"];
export type ChangedFile = Schemas["ChangedFileOut"];
export type Checkpoint = Schemas["CheckpointOut"];
export type CheckpointReason = Schemas["CheckpointReason"];
export type Child = Schemas["ChildOut"];
export type Failure = Schemas["FailureOut"];
export type FileEntry = Schemas["FileOut"];
export type LimitKind = Schemas["LimitKind"];
export type Found = Schemas["FoundOut"];
export type FoundPage = Schemas["FoundPage"];
export type Limits = Schemas["LimitsOut"];
export type Me = Schemas["MeOut"];
export type Models = Schemas["ModelPage"];
export type NewFork = Schemas["ForkIn"];
export type NewSession = Schemas["SessionIn"];
export type NewTask = Schemas["TaskIn"];
export type OpenRequest = Schemas["RequestOut"];
export type Origin = Schemas["OriginOut"];
export type Parent = Schemas["ParentOut"];
export type Question = Schemas["QuestionOut"];
export type Repository = Schemas["RepositoryOut"];
export type Sandbox = Schemas["SandboxOut"];
export type SearchMode = Schemas["SearchMode"];
export type SessionPage = Schemas["SessionPage"];
export type SessionSummary = Schemas["SessionSummaryOut"];
export type Step = Schemas["StepOut"];
export type Task = Schemas["TaskOut"];
export type TaskAccepted = Schemas["TaskAccepted"];
export type TaskChange = Schemas["TaskChange"];
export type Todo = Schemas["TodoOut"];
export type Usage = Schemas["UsageOut"];
export type WantedCheckpoint = Schemas["WantedOut"];
