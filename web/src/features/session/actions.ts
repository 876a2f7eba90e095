/** What a person can do to a session, each told of when it fails. */

import { useMutation } from "@tanstack/react-query";
import { answerRequest, archiveSession, cancelTask, retrySession } from "@/api/sessions";
import type { Answer } from "@/api/types";
import { toastFailure } from "@/components/failure-toast";

export const useRetry = (id: string) =>
  useMutation({ mutationFn: () => retrySession(id), onError: toastFailure("The session was not retried") });

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
