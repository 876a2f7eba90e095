/** What a person can do to a session, each told of when it fails. */

import { useMutation } from "@tanstack/react-query";
import { newKey } from "@/api/http";
import {
  answerRequest,
  archiveSession,
  cancelTask,
  createTask,
  editTask,
  moveTask,
  pauseSession,
  resumeSession,
  retrySession,
  takeCheckpoint,
} from "@/api/sessions";
import type { Answer, Task, TaskChange } from "@/api/types";
import { toastFailure } from "@/components/failure-toast";

export const useRetry = (id: string) =>
  useMutation({ mutationFn: () => retrySession(id), onError: toastFailure("The session was not retried") });

/** Queues what a task said as a new one. */
export const useTask = (id: string) =>
  useMutation({
    mutationFn: ({ prompt, model, agent, limits }: Pick<Task, "prompt" | "model" | "agent" | "limits">) =>
      createTask(id, { prompt, model, agent, limits }, newKey()),
    onError: toastFailure("The task was not queued"),
  });

export const useEditTask = (id: string) =>
  useMutation({
    mutationFn: ({ taskId, change }: { taskId: string; change: TaskChange }) => editTask(id, taskId, change),
    onError: toastFailure("The task was not changed"),
  });

export const useMoveTask = (id: string) =>
  useMutation({
    mutationFn: ({ taskId, before }: { taskId: string; before: string }) => moveTask(id, taskId, before),
    onError: toastFailure("The task was not moved"),
  });

export const usePause = (id: string) =>
  useMutation({ mutationFn: () => pauseSession(id), onError: toastFailure("The session was not paused") });

export const useResume = (id: string) =>
  useMutation({ mutationFn: () => resumeSession(id), onError: toastFailure("The session was not resumed") });

export const useTakeCheckpoint = (id: string) =>
  useMutation({ mutationFn: () => takeCheckpoint(id), onError: toastFailure("No checkpoint was taken") });

export const useArchive = (id: string) =>
  useMutation({ mutationFn: () => archiveSession(id), onError: toastFailure("The session was not archived") });

export const useCancelTask = (id: string) =>
  useMutation({
    mutationFn: (taskId: string) => cancelTask(id, taskId),
    onError: toastFailure("The task was not stopped"),
  });

export const useAnswer = (id: string, requestId: string) =>
  useMutation({
    mutationFn: (answer: Answer) => answerRequest(id, requestId, answer),
    onError: toastFailure("The answer did not arrive"),
  });
