/** What a person can do to a session, each told of when it fails. */

import { useMutation } from "@tanstack/react-query";
import { newKey } from "@/api/http";
import { answerRequest, archiveSession, cancelTask, createTask, retrySession } from "@/api/sessions";
import type { Answer, Task } from "@/api/types";
import { toastFailure } from "@/components/failure-toast";

export const useRetry = (id: string) =>
  useMutation({ mutationFn: () => retrySession(id), onError: toastFailure("The session was not retried") });

/** Queues what a task said as a new one. */
export const useTask = (id: string) =>
  useMutation({
    mutationFn: ({ prompt, model, agent }: Pick<Task, "prompt" | "model" | "agent">) =>
      createTask(id, { prompt, model, agent }, newKey()),
    onError: toastFailure("The task was not queued"),
  });

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
