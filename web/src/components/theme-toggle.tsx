import { Monitor, Moon, Sun } from "lucide-react";
import { useTheme, type Theme } from "@/lib/theme";
import { IconButton } from "./icon-button";

const NEXT: Record<Theme, Theme> = { system: "light", light: "dark", dark: "system" };
const ICONS = { system: Monitor, light: Sun, dark: Moon };

/** Goes round system, light and dark. */
export function ThemeToggle() {
  const [theme, setTheme] = useTheme();
  const Icon = ICONS[theme];
  return (
    <IconButton
      label={`Theme: ${theme}`}
      onClick={() => {
        setTheme(NEXT[theme]);
      }}
    >
      <Icon aria-hidden />
    </IconButton>
  );
}
